//! Column numbers of the extension's tables, for scans below SQL. Sums and changes share their first five columns.

pub mod setting {
    pub const NAME: usize = 1;
    pub const DIMENSIONS: usize = 2;
    pub const THRESHOLD: usize = 3;
    pub const MODEL: usize = 4;
    pub const MEMBERS: usize = 5;
}

pub mod sum {
    pub const COLLECTION: usize = 1;
    pub const CLUSTER: usize = 2;
    pub const SIZE: usize = 3;
    pub const SUM: usize = 4;
    /// The remainder of the single-precision sum: column "rest".
    pub const REMAINDER: usize = 5;
    pub const MODEL: usize = 7;
    /// Column "mark".
    pub const SEQUENCE_NUMBER: usize = 10;
}

pub mod change {
    pub const CLUSTER: usize = 2;
    /// Column "mark".
    pub const SEQUENCE_NUMBER: usize = 7;
}

pub mod code {
    pub const COLLECTION: usize = 1;
    /// The first cluster of the block.
    pub const FIRST: usize = 2;
    /// Column "mark".
    pub const SEQUENCE_NUMBER: usize = 3;
    pub const ENTRIES: usize = 4;
}

pub mod grant {
    pub const COLLECTION: usize = 1;
    pub const GRANTEE: usize = 2;
    pub const PRIVILEGE: usize = 3;
}
