"""The router's own schemas: native jobs for its users, workers for its operator.

`infra` and the client import this package and nothing else of the router. Foreign requests that a client reads too are
in `dialects`, the others beside their routes in `router.api`; all of them become a `JobRequest`.

Public app, on a unix socket behind the edge, `Authorization: Bearer <api key>`:
    POST   /v1/jobs                JobRequest -> 202 JobView, with Location
    POST   /v1/jobs/batch          JobRequests, one a line -> 202 JobsAccepted: all or none
    GET    /v1/jobs                JobsPage: the key's own; ?state=, ?pool=, ?batch=, ?created_after=, ?after=, …
    GET    /v1/jobs/{id}           JobView
    DELETE /v1/jobs/{id}           cancel -> JobView
    POST   /v1/jobs/{id}/retry     the same again as a new job -> 202 JobView, with Location
    GET    /v1/jobs/{id}/image     the image's bytes
    GET    /v1/jobs/{id}/events    server-sent events; each carries a JobView, its name the JobEvent
    GET    /v1/webhooks/secrets    WebhookSecrets: what the key's webhooks are signed with
    POST   /v1/webhooks/secrets    a new one -> WebhookSecrets; the old one signs along for a day
    GET    /healthz                Health, no key
    GET    /readyz                 Readiness, no key; ?pool= wants a ready worker of that pool too

Admin app, on 127.0.0.1 only; reading is free to whoever is on the host, changing wants
`Authorization: Bearer <admin key>`:
    GET    /workers                list[WorkerView]
    PUT    /workers/{name}         WorkerRegistration -> WorkerView; again with the same body is the same
    GET    /workers/{name}         WorkerView
    POST   /workers/{name}/drain   no new job; what runs is finished -> WorkerView
    POST   /workers/{name}/release out of quarantine -> WorkerView
    DELETE /workers/{name}         removed; gone is success
    GET    /pools                  list[PoolView]
    PUT    /pools/{name}/expected  PoolExpected: take jobs on though no worker is registered yet
    GET    /keys                   list[KeyView]
    POST   /keys                   KeyRequest -> 201 NewKey, the one time that the key itself is shown
    PUT    /keys/{name}/limits     KeyLimitsView -> KeyView
    DELETE /keys/{name}            revoked; again is the same -> KeyView
    GET    /keys/{name}/usage      list[UsageView], one a day; ?since=2026-11-01
    GET    /webhooks               list[DeliveryView]; ?state=, ?limit=
    POST   /webhooks/{id}/replay   due now -> DeliveryView
    POST   /webhooks/replay        all dead ones -> Replayed
    GET    /tunnels                TunnelsView
    GET    /healthz  /readyz  /metrics

What is asked for and told of jobs is in `jobs`, workers in `workers`, and so on; all of it is imported from here.
"""

from router.contract.jobs import (
    MAX_BATCH_BYTES,
    MAX_BATCH_JOBS,
    MAX_URL,
    ErrorView,
    ImageView,
    JobEvent,
    JobRequest,
    JobsAccepted,
    JobsPage,
    JobState,
    JobView,
    Progress,
    WebhookUrl,
)
from router.contract.keys import (
    KeyLimitsView,
    KeyRequest,
    KeyView,
    NewKey,
    UsageView,
)
from router.contract.names import (
    BATCH,
    EDGE_ARTIFACTS,
    INTERACTIVE,
    MAX_PORT,
    SOCKET_PATH_MAX,
    JobId,
    KeyName,
    ModelName,
    PoolName,
    Priority,
    Tier,
    WorkerName,
    fingerprint,
)
from router.contract.tunnels import (
    TUNNEL_SOCKET_MAX,
    ForwardView,
    HostKey,
    MachineId,
    TunnelMachine,
    TunnelMachines,
    TunnelState,
    TunnelsView,
    TunnelView,
    forward_only,
    tunnel_socket,
)
from router.contract.webhooks import (
    BatchWebhook,
    DeliveryState,
    DeliveryView,
    EndedBatch,
    JobOutcome,
    JobWebhook,
    Replayed,
    WebhookSecrets,
    WebhookType,
)
from router.contract.workers import (
    Health,
    PoolExpected,
    PoolView,
    Readiness,
    WorkerHealth,
    WorkerRegistration,
    WorkerView,
)

__all__ = [
    "BATCH",
    "EDGE_ARTIFACTS",
    "INTERACTIVE",
    "MAX_BATCH_BYTES",
    "MAX_BATCH_JOBS",
    "MAX_PORT",
    "MAX_URL",
    "SOCKET_PATH_MAX",
    "TUNNEL_SOCKET_MAX",
    "BatchWebhook",
    "DeliveryState",
    "DeliveryView",
    "EndedBatch",
    "ErrorView",
    "ForwardView",
    "Health",
    "HostKey",
    "ImageView",
    "JobEvent",
    "JobId",
    "JobOutcome",
    "JobRequest",
    "JobState",
    "JobView",
    "JobWebhook",
    "JobsAccepted",
    "JobsPage",
    "KeyLimitsView",
    "KeyName",
    "KeyRequest",
    "KeyView",
    "MachineId",
    "ModelName",
    "NewKey",
    "PoolExpected",
    "PoolName",
    "PoolView",
    "Priority",
    "Progress",
    "Readiness",
    "Replayed",
    "Tier",
    "TunnelMachine",
    "TunnelMachines",
    "TunnelState",
    "TunnelView",
    "TunnelsView",
    "UsageView",
    "WebhookSecrets",
    "WebhookType",
    "WebhookUrl",
    "WorkerHealth",
    "WorkerName",
    "WorkerRegistration",
    "WorkerView",
    "fingerprint",
    "forward_only",
    "tunnel_socket",
]
