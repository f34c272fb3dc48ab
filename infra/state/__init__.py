"""Where a stack's state lies, and the sealed bundle of its keys beside it.

`backend` says where, `bundle` what is sealed, `custody` whose turn it is, `safekeeping` keeps both the same around a
deploy. The resources in that state are the Pulumi engine's (`infra.engine`).
"""
