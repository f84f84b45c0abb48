"""/settings: one file a tab; each is shown to whom it is for, and its handlers refuse all others."""

from __future__ import annotations

from luthier.features.accounts import account_pages as account
from luthier.features.accounts import keys_pages as keys
from luthier.features.accounts import members_pages as members
from luthier.features.accounts import projects_pages as projects
from luthier.features.audit_log import pages as audit_log
from luthier.features.planning import prices_pages as prices
from luthier.features.traffic import pages as traffic
from luthier.features.usage import pages as usage
from luthier.features.webhooks import pages as webhooks

ROUTERS = tuple(tab.router for tab in (account, keys, members, projects, webhooks, audit_log, usage, traffic, prices))
