"""The run folder, the stages that fill it, jobs that share them, and what is written about a selection."""
