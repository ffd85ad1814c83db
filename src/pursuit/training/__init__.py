"""Training by transformers' Trainer that ends with the same bits however often it was killed.

Used by the warm-up and by fine-tuning: `plan` says which rows each step trains on, `trainer` trains, `recorder` keeps
what is needed to go on, `folder` looks after the folder.
"""
