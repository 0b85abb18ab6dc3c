"""What every way of spreading a model over processes shares: process groups, which rank is where, sums over ranks."""
