"""GTP, LESS, RDS+, TAGCOS and k-center on steps of text games: which rows were chosen, and what a model learnt."""
