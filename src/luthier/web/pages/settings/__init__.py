"""/settings: one file a tab; each is shown to whom it is for, and its handlers refuse all others."""

from __future__ import annotations

from luthier.web.pages.settings import account, audit_log, keys, members, prices, projects, traffic, usage, webhooks

ROUTERS = tuple(tab.router for tab in (account, keys, members, projects, webhooks, audit_log, usage, traffic, prices))
