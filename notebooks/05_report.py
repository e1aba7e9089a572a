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
# # The report
#
# **What do I tell the marketing team: did our mail leave, did it arrive, and what should be done now?**
#
# An answer looks like this: one page with three figures, one chart and what to do, in words that need no knowledge of
# SMTP, then the detail. As a web page, a PDF or a workbook.

# %% [markdown]
# The data at hand: a sweep and a campaign of two clients. Your own: `dk.read(["logs/", "bounces.mbox", "probes.csv"])`.

# %%
import pandas as pd

import deliverkit as dk

data = dk.sample()
data.groupby("origin").size().rename("rows").reset_index()

# %% [markdown]
# The three figures that matter, as frames: what was turned away, what bounced of what had an answer, and for whom.

# %%
dk.block_rates(data, by="vantage")

# %% [markdown]
# Per client, so that nobody's problem hides in an average.

# %%
dk.bounce_rates(data, by="client").round(3)

# %% [markdown]
# Build it: for one client or all, against the period before if you have it. Recipients are masked unless you say
# otherwise. The link below the button holds the whole file; nothing is written to a disk.

# %%
builder = dk.report_builder(data, provider="SendGrid", sending="application")
builder

# %% [markdown]
# The builder can be driven from Python as well.

# %%
builder.make.click()
print(builder.report.html.count("<section"), "sections; a link to download it:", "Download" in builder.view.value)

# %% [markdown]
# For an agency: one report per client from one frame, with nothing of one client in another's.

# %%
each = dk.reports(data, provider="SendGrid", date="2026-11-25")
pd.DataFrame({"client": [*each], "kB of HTML": [round(len(r.html) / 1000) for r in each.values()]})

# %% [markdown]
# Saved like this; the ending decides: `dk.report(data).save("report.html")`, `.pdf` or `.xlsx`. From a shell:
# `deliverkit report logs/ bounces.mbox -o report.pdf`.

# %%
report = dk.report(data, provider="SendGrid", date="2026-11-25")
report

# %% [markdown]
# ## What this does not tell you
#
# * Whether mail was read, or filed as spam after it was accepted.
# * That a better port improves placement in the inbox: receivers never see it.
# * Anything about mail of which no log, bounce or export was read.
# * Names of people: recipients are masked; ask for them only where you may show them.
