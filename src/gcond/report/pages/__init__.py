"""Pages of the ablations and of the questions O1, O6 and O10: table, figure and words, from recorded runs alone."""
