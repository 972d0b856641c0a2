"""What goes wrong between us and BFL's cloud, each with its code.

CloudError              provider_error      502   it failed, or answered what nobody understands
├── CloudUnclear        provider_error      502   nobody knows whether the request was taken: never sent again
├── CloudUnreachable    provider_error      502   nothing was sent
├── CloudBusy           provider_busy       503   429: too many requests at once
├── NoCredits           provider_credits    402   402: the account is empty
├── KeyUnknown          provider_key        502   401: the key is none of BFL's
├── KeyForbidden        provider_forbidden  502   403: the key may not use this model
├── CloudRefused        provider_refused    400   400, 422: BFL does not take the request
├── Moderated           moderated           502   the prompt, a picture sent along or the result was blocked
├── TaskLost            provider_lost       502   BFL does not know the task any more
├── BudgetSpent         provider_budget     429   FLUX_BFL_DAILY_BUDGET_USD
└── CloudLate           timeout             504   no picture by FLUX_BFL_POLL_TIMEOUT
"""

from __future__ import annotations

from config.errors import FluxError

MAY_COST = "BFL may have charged for it"


class CloudError(FluxError):
    """`is_free`: BFL charges nothing, or the request was not taken."""

    code, status = "provider_error", 502
    is_free = False


class CloudUnclear(CloudError):
    pass


class CloudUnreachable(CloudError):
    is_free = True


class CloudBusy(CloudError):
    code, status = "provider_busy", 503
    is_free = True


class NoCredits(CloudError):
    code, status = "provider_credits", 402
    is_free = True


class KeyUnknown(CloudError):
    code = "provider_key"
    is_free = True


class KeyForbidden(CloudError):
    code = "provider_forbidden"
    is_free = True


class CloudRefused(CloudError):
    code, status = "provider_refused", 400
    is_free = True


class Moderated(CloudError):
    code = "moderated"
    is_free = True


class TaskLost(CloudError):
    code = "provider_lost"


class BudgetSpent(CloudError):
    code, status = "provider_budget", 429
    is_free = True


class CloudLate(CloudError):
    code, status = "timeout", 504
