"""Updates as rows of one matrix: layout, inner products, clustering, and what arithmetic can be done with."""
