"""What training costs before it is started: FLOPs, GPU hours, money, and memory on every rank."""
