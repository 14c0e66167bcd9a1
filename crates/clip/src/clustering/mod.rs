//! The arithmetic of grouping: centroids, binary codes to find them, agglomerative clustering of a whole collection.

pub mod agglomerative;
pub mod binary_code;
pub mod centroid;
pub mod likelihood;
pub mod regroup;
