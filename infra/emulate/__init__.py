"""Clouds that cost nothing: providers' HTTP APIs with state, money and faults, on this computer.

`letterpress emulate spheron` serves one, so that a stack that rents machines can be tried without an account;
the tests rent from the same. `account` is what was rented and what it costs, `machines` what a rental really
is (`hosts`: a machine without hardware), `server` the HTTP around a provider's API; `spheron` and `runpod` are
those APIs. What they answer is held to the providers' own descriptions where there is one.
"""
