//! The arithmetic of clusters: centroids, binary codes that find them, and agglomerative clustering of a whole
//! collection.

pub mod agglomerative;
pub mod binary_code;
pub mod centroid;
pub mod likelihood;
pub mod regroup;
