# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Why did it bounce
#
# **Why did messages fail, whose fault is it, and could another port have helped?**
#
# An answer looks like this: *of 211 messages that failed 166 got no connection, which is the port's or the network's
# fault; 19 are the list's, 13 the sender's reputation, 13 the content's, and no port cures those.* A bounce is a
# refusal; what was given up without one is counted beside it.

# %% [markdown] tags=["python"]
# Figures are drawn as SVG, so that a changed chart can be told from the same one; sentences in tables are shown whole.

# %%
import matplotlib.pyplot as plt
import pandas as pd

import deliverkit as dk

# %config InlineBackend.figure_format = "svg"
pd.set_option("display.max_colwidth", None)
plt.rcParams.update({"svg.hashsalt": "deliverkit", "svg.fonttype": "none", "figure.figsize": (8, 3.6)})

# %% [markdown]
# The mail at hand, one row per attempt. (Shipped with deliverkit: logs, bounce messages and provider exports of one
# campaign. Your own opens with `dk.read("path")`; `dk.attach_sends(mail, "sends.csv")` adds port, client and campaign
# from a send list; `joined` says by what a row was found in it.)

# %%
mail = dk.sample("mail")
mail.groupby(["origin", "joined"]).size().rename("rows").reset_index()

# %% [markdown]
# How messages ended, per client. Bounced is counted of those that had an answer; given up and open stand beside it.

# %%
dk.bounce_rates(mail, by="client").round(3)

# %% [markdown]
# Why messages failed: bounced, or given up for what their last attempt met. Each message counts once for each
# recipient, whatever number of attempts it took.

# %%
figure, ax = plt.subplots(layout="constrained")
_ = dk.plot_bounce_reasons(mail, ax=ax)

# %% [markdown]
# Explore: whose fault it is, at which operator, for which client; then choose a message to see the evidence behind it:
# what was read, where, and the rule with its source that says what it means.

# %%
explore = dk.explore_bounces(mail)
explore

# %% [markdown] tags=["python"]
# The widget can be driven from Python as well; what it shows is text.

# %% tags=["python"]
explore.grouping.value = "fault"
explore.row.value = explore.row.options[1][1]
print(explore.row.label)
print(explore.view.value.count("<tr>") - 1, "kinds of fault")

# %% [markdown]
# The same evidence as columns: which field decided, by which words, and how often evidence of that sort was right among
# labelled messages. One example of each reason:

# %%
evidence = ["category", "operator", "rule", "field", "matched", "confidence"]
mail[mail["outcome"].eq("failed")].drop_duplicates("category")[evidence].sort_values("category").reset_index(drop=True)

# %% [markdown] tags=["python"]
# Every row names the rule that judged it, and every rule can be looked up.

# %% tags=["python"]
unknown = mail.loc[mail["category"].eq("invalid_recipient"), "rule"].iloc[0]
pd.Series(dk.explain(unknown)).rename("what stands behind it").to_frame()

# %% [markdown]
# Over time: attempts that were turned away, a line per port. A port problem begins at an hour; a bad list does not.

# %%
figure, ax = plt.subplots(layout="constrained")
_ = dk.plot_timeline(mail, by="hour", ax=ax)

# %% [markdown]
# Where attempts ended. Lost at connect, rules or encryption, an attempt never reached the message; at relay and inbox
# it was refused or put off. *Inbox* is passed when the server took the message: where it was filed nobody here sees.

# %%
funnel = dk.funnel(mail, by=None)
funnel[["step", "reached", "passed", "share", "low", "high"]].round(3)

# %% [markdown]
# ## What this does not tell you
#
# * What was accepted and then filed as spam: no bounce and no log says that.
# * The port of a bounce that came back as a message: it is not in there. Logs have it.
# * Whether a mailbox that is full today is abandoned. One soft bounce is no verdict on an address.
# * Anything about a message that never left: it makes no bounce. Look at the block rates for those.
