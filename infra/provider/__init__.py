"""Our Pulumi provider: four resources, and the gRPC server that the Pulumi engine speaks to them through.

`resource` says what a resource is; `machine`, `worker_host`, `router_host` and `registration` are one
each; `site` gives them clouds, hosts and secrets; `border` turns the engine's structs into their typed
values and `server` answers the engine. Nothing here knows stack files or the Automation API.

Rules that all of them keep:
- A resource's id is its name in the program, and what it is called in the world stands in its inputs: both
  are known before it exists. So whatever a killed run has left can be looked for, and a create begins with
  that look: nothing is ever made twice.
- Properties hold names and fingerprints; a secret's value is read where it is used.
- `read` says there, gone (None) or, by a condition, unknown; unknown keeps the state.
- A failure deletes nothing. What a failed create left behind is recorded, so that it can be repaired or
  destroyed.
"""
