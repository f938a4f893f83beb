"""The study as data: the queue of its runs, and the table that they are recorded in."""
