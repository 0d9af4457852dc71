"""The paper's tables as queues of runs, their results, and the page that shows them."""
