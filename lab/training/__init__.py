"""One run: state, optimizer, schedule, steps, metrics, and the folder that it leaves behind."""
