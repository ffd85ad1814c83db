"""What each section of the page says, as plain strings and rows for the templates."""
