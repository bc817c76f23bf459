"""Parameters, operations and receptive fields of networks, without running them."""
