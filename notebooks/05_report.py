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
# The data at hand. (Shipped with deliverkit: a sweep and a campaign of two clients. Your own:
# `dk.read(["logs/", "bounces.mbox", "probes.csv"])`.)

# %%
import pandas as pd

import deliverkit as dk

data = dk.sample()
data.groupby("origin").size().rename("rows").reset_index()

# %% [markdown]
# The figures that matter, as a frame: what was accepted, what was refused of that which had an answer, what never left,
# and how many attempts at the ports were turned away.

# %%
report = dk.report(data, date="2026-11-25")
report.frames["summary"].round(3)

# %% [markdown]
# Per client, so that nobody's problem hides in an average.

# %%
report.frames["per client"][["client", "messages", "sent", "bounced", "expired", "open", "never_left"]]

# %% [markdown]
# And what the probes say of the ports, network by network: the chart of the report.

# %%
dk.block_rates(dk.sample("probes"), by=["vantage", "port"])

# %% [markdown]
# Build it: for one client or all, against the period before if you have it. Recipients are masked unless you say
# otherwise. The link below the button holds the whole file; nothing is written to a disk.

# %%
builder = dk.report_builder(data)
builder

# %% [markdown] tags=["python"]
# The builder can be driven from Python as well.

# %% tags=["python"]
builder.make.click()
print(builder.report.html.count("<section"), "sections; a link to download it:", "Download" in builder.view.value)

# %% [markdown] tags=["python"]
# For an agency: one report per client from one frame, with nothing of one client in another's.
# `each.save("report.pdf")` writes them all.

# %% tags=["python"]
each = dk.reports(data, date="2026-11-25")
pd.DataFrame({"client": [*each], "kB of HTML": [round(len(r.html) / 1000) for r in each.values()]})

# %% [markdown]
# The report. It is saved as what its ending says: `report.save("report.html")`, `.pdf` or `.xlsx`; from a shell
# `deliverkit report logs/ bounces.mbox -o report.pdf`.

# %%
report

# %% [markdown]
# ## What this does not tell you
#
# * Whether mail was read, or filed as spam after it was accepted.
# * That a better port improves placement in the inbox: receivers never see it.
# * Anything about mail of which no log, bounce or export was read.
# * Names of people: recipients are masked; ask for them only where you may show them.
