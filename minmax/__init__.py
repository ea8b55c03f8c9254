"""Model level of Similarity Min-Max, and what the image level and all tasks share."""
