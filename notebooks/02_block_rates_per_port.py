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
# # Block rates per port
#
# **How often is each SMTP port blocked, from which network, and is that what the guide expects?**
#
# An answer looks like this: *from the office 8 of 8 servers are silent on 25, so between 68 % and 100 % of attempts
# on 25 are lost there; 587 is open.* A rate never stands without its count and its 95 % interval.

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
# The sweep at hand: one row is one attempt. (Shipped with deliverkit: eight servers, four ports, three networks. Your
# own opens with `dk.read("path")`.)

# %%
probes = dk.sample("probes")
probes[["vantage", "host", "port", "verdict", "failure", "blocked_by"]].head(6)

# %% [markdown]
# Over all networks, with the guide's expectation beside the measurement. An average hides that networks differ.

# %%
dk.block_rates(probes)

# %% [markdown]
# Network by network. In the sample the office shuts 25, the cloud shuts three ports, at home single servers fail.

# %%
dk.block_rates(probes, by=["vantage", "port"])

# %% [markdown]
# The same as a figure of your own: every plot takes `ax` and returns it. Hollow marks: too few attempts to say.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), sharey=True, layout="constrained")
for ax, (network, rows) in zip(axes, probes.groupby("vantage"), strict=True):
    _ = dk.plot_block_rates(dk.block_rates(rows), ax=ax).set_title(network)

# %% [markdown]
# Explore sweep and mail together: by port and network, provider, client, campaign and time, all or one of them. Where
# there are too few attempts to say, that is said, and the dot is hollow.

# %%
explore = dk.explore_rates(dk.sample())
explore

# %% [markdown] tags=["python"]
# The widget can be driven from Python as well; what it shows is text.

# %% tags=["python"]
explore.grouping.value = "vantage"
explore.split.value = "client"
explore.port.value = 587
print(explore.view.value.count("<tr>") - 1, "groups of port", explore.port.value)
explore.port.value = explore.split.value = ""

# %% [markdown]
# Is it the network, or the servers? One silent server proves nothing; several operators do.

# %%
dk.egress(probes)[["vantage", "port", "verdict", "confidence", "why"]].round(3)

# %% [markdown]
# A second network is a second witness: the same servers, port by port. `only_there` counts servers that answered
# `other` and not `vantage`; `neither` heard from none. `blocked_here` means that `vantage` is shut out; `p` is how
# often chance alone would part the two networks so far (McNemar's exact test; a dozen of them bring some luck along).

# %%
columns = ["vantage", "other", "port", "both", "only_here", "only_there", "neither", "p", "verdict"]
dk.compare(probes)[columns].round(4)

# %% [markdown]
# Mail logs and exports answer the same question for mail that was really sent. Lines that only repeat an older failure
# are read but never counted.

# %%
mail = dk.sample("mail")
dk.block_rates(mail)

# %% [markdown]
# Where attempts are lost: each step of the guide has its own denominator, the attempts that reached it.

# %%
_ = dk.plot_funnel(dk.funnel(mail))

# %% [markdown]
# What bounced is another question with another denominator: messages that had an answer.

# %%
dk.bounce_rates(mail).round(3)

# %% [markdown]
# What is too little to say is said: the same networks, of the first dozen attempts only.

# %%
dk.block_rates(probes.head(12))

# %% [markdown]
# ## What this does not tell you
#
# * Whether mail reached the inbox. Receivers never see the port you submitted on.
# * How *your* network behaves: these are samples. Probe your own hosts: `dk.probe(["smtp.your-provider.example"])`.
# * Why a single silent server is silent. Eight servers of several operators are evidence, one is an anecdote.
# * A rate for ports nobody tried. What is not known stays missing.
