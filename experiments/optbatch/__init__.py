"""OptBatch's claim in small: less compute than training on all, and no loss of score?"""
