"""`letterpress watch`: keeps a stack's machines as many, as cheap and as alive as its description asks.

`decide` is the decision, pure: what is seen and what is offered in, a placement and the reasons out; better
policies are tried there, by simulation. `observe` asks the cloud and the router, `silence` finds machines that answer
nobody, `run` carries out what was decided, one round after another.
"""
