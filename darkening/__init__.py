"""Image level of Similarity Min-Max: a darkener that lowers the similarity a frozen daytime model sees."""
