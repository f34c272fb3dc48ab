"""What a person sees of a stack: `observe` asks, `status` makes rows of the answers (pure), `logs` reads what processes
wrote, and `console` is the one module that prints.
"""
