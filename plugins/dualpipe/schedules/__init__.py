"""Tables of pipeline schedules, their simulator and their checks; pure Python."""
