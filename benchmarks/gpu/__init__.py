"""Every kernel on a GPU: right, and how fast beside its peers and the card's own limits; one module per plugin."""
