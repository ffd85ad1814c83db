"""What leaves a run: the subset with the reasons, and files in the form that trainers read."""
