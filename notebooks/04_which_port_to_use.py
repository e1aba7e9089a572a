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
# # Which port to use
#
# **Which port should my system send on, from this network, through this provider?**
#
# An answer looks like this: *use 587 with STARTTLS; if that fails 465, then 2525, then the provider's HTTPS API*, with
# the rules and sources it rests on, and where the guide, the standards and the provider disagree.

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
# What was measured, port by port and network by network. (The sweep at hand; shipped with deliverkit: three networks.)

# %%
probes = dk.sample("probes")
figure, ax = plt.subplots(layout="constrained")
_ = dk.plot_block_rates(dk.block_rates(probes, by=["vantage", "port"]), ax=ax)

# %% [markdown]
# Four questions, one at a time, then the answer. Each page shows the guide's rule with its source, what was measured,
# and where others say otherwise. Say under *Measured from* which of the networks is yours, and the measurements fill
# themselves in; or say what you tried. The last page has the settings for your software, tests by hand, and a
# rehearsal: one real submission with a login. The password you type there is used once and kept nowhere. (The server of
# the rehearsal is one of a lab's, on this very machine, and takes any login.)

# %%
lab = dk.Lab().start()
trial = {"server": lab.hosts[0], "connect_to": lab.connect_to, "trust": lab.certificate, "timeout": 5}
wizard = dk.port_wizard(probes, **trial)
wizard

# %% [markdown] tags=["python"]
# The wizard can be driven from Python as well: its last page holds the answer, an `Advice`. Here for a website that
# sends through SendGrid from the sample's office.

# %% tags=["python"]
dk.port_wizard(probes, sending="website", provider="SendGrid", vantage="office", page=4).advice

# %% [markdown] tags=["python"]
# The same in one call, for an application that sends through Amazon SES from the sample's cloud, by the standards; and
# what the other two policies would say.

# %% tags=["python"]
advice = dk.choose_port("application", "standards", "Amazon SES", evidence=probes[probes["vantage"] == "cloud"])
print(advice.headline)
pd.DataFrame(advice.others, columns=["policy", "port", "why"])

# %% [markdown] tags=["python"]
# One rehearsal without a login, from Python: its steps, as the sending system would go through them.

# %% tags=["python"]
steps = dk.rehearse(lab.hosts[0], 587, connect_to=lab.connect_to, trust=lab.certificate)
steps[["stage", "step", "outcome", "reply_code", "tls_version"]]

# %% [markdown]
# ## What this does not tell you
#
# * That mail will reach the inbox: receivers never see the port you submitted on.
# * What your network does today, unless you probed it: published policies are what a provider says.
# * Which provider to take. The port is chosen for the provider you have.
# * If every port is shut: then the port is not the problem, the sending environment is.
