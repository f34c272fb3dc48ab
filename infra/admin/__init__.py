"""What an operator asks of a router that runs, by its admin API: keys, webhooks, tunnels; one module each."""
