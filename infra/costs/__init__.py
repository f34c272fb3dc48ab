"""What an image costs, and so which card is the cheapest.

`gpus` is the catalogue of cards, `choice` judges offers by it, `charges` is what a placement costs, `hosted` what
others ask, `figures` what the fleet has measured itself; `plan` is `letterpress plan`, which puts them side by side.
"""
