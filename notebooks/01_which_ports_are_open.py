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
# # Which ports are open
#
# **Which SMTP ports get out of my network, how far does each get, and who stops the rest?**
#
# An answer looks like this: *of 8 servers of 8 operators none answers on 25 and all answer on 587, so my network shuts
# 25, with a probability above 99 %.* One silent server alone proves nothing.

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
# A network to look at: eight mail servers on this very machine, behind a provider that lets nothing out on port 25.
# To probe servers of your own, leave out `connect_to` and `pace` and name them: `dk.probe(["mail.example.com"])`.

# %%
lab = dk.Lab("isp-blocks-25").start()
probes = dk.probe(lab.hosts, connect_to=lab.connect_to, vantage="lab", timeout=3, pace=None)
probes.groupby(["port", "verdict"]).size().rename("hosts").reset_index()

# %% [markdown]
# How far each port gets. A probe ends after encryption: it says EHLO, starts TLS, says QUIT and sends no mail, so relay
# and inbox are never reached. Each step is measured against the attempts that reached it.

# %%
funnel = dk.funnel(probes)
funnel.loc[funnel["reached"] > 0, ["port", "step", "reached", "passed", "share"]]

# %% [markdown]
# Explore: one network, host or port; probe again; cancel while it runs, and resume where it stopped. Finished ports are
# never tried twice. (In a script, Ctrl-C keeps what is done and `dk.probe(..., resume=probes)` goes on.)

# %%
explore = dk.explore_probes(probes, hosts=lab.hosts, connect_to=lab.connect_to, vantage="lab", timeout=3, pace=None)
explore

# %% [markdown] tags=["python"]
# The widget can be driven from Python as well; what it shows is text.

# %% tags=["python"]
explore.port.value = "25"
print(explore.view.value.count(">tcp_timeout<"), "servers silent on port", explore.port.value)
explore.port.value = ""

# %% [markdown]
# Is it my network? The verdict weighs operators, not hosts, and names its evidence.

# %%
dk.egress(probes)[["port", "verdict", "confidence", "why"]].round(3)

# %% [markdown]
# On your own network: `dk.egress(dk.probe(dk.controls(), vantage="office", out="office.jsonl"))` asks well known mail
# servers, politely. What should it find? Networks and providers publish policies. `evidence` says how well a row is
# known: *read* at the source, or *secondary*, from somebody who reports it; `noted` is the date on the source.

# %%
dk.forecast("Amazon SES", "Hetzner Cloud")[["network", "provider", "port", "expected", "noted", "evidence"]]

# %% [markdown]
# The lab is no cloud of anybody's; let us pretend that it stands at Hetzner. `differs` is True where the measurement is
# not what is published (465 should be shut and is open), and missing where nothing is published. In real life such a
# port was unblocked on request, or the policy has changed, or the source is wrong: the probe outranks it.

# %%
expected = dk.forecast(network="Hetzner Cloud")
dk.egress(probes, forecast=expected)[["port", "verdict", "expected", "differs"]]

# %% [markdown]
# The sweep at hand, for comparison. (Shipped with deliverkit: three networks; your own with `dk.read("path")`.)

# %%
here = dk.sample("probes")
dk.block_rates(here, by=["vantage", "port"])

# %% [markdown]
# The same as a figure of your own.

# %%
rates = dk.block_rates(here)
_ = dk.plot_block_rates(rates)

# %% [markdown]
# What the servers offered where they answered: the facts a sending program needs.

# %%
probes.loc[probes["verdict"] == "open", ["port", "mode", "tls_version", "auth_after_tls"]].drop_duplicates()

# %% [markdown]
# ## What this does not tell you
#
# * Whether mail would be taken or delivered: no mail was sent, no login tried. `dk.rehearse` does one real submission.
# * What another network does: a laptop says nothing about the server room. Probe from where the mail leaves.
# * What happens tomorrow: networks change their filters. Probe again before a campaign.
# * Why one single server is silent. Several hosts of several operators are evidence, one is an anecdote.
