"""Tables of runs summarized: cells, statistics, and the switches of each version of Axon."""
