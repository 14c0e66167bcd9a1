//! Union–find.

/// Disjoint sets of points (union–find with path halving). Each set is a group, identified by its lowest point.
pub(super) struct Forest(pub(super) Vec<u32>);

impl Forest {
    pub(super) fn new(n: usize) -> Self {
        Self((0..n as u32).collect())
    }

    /// Like [`Forest::find`], without changing the forest.
    pub(super) fn root(&self, mut point: u32) -> u32 {
        while self.0[point as usize] != point {
            point = self.0[point as usize];
        }
        point
    }

    pub(super) fn find(&mut self, mut point: u32) -> u32 {
        while self.0[point as usize] != point {
            let parent = self.0[point as usize];
            self.0[point as usize] = self.0[parent as usize];
            point = parent;
        }
        point
    }

    pub(super) fn unite(&mut self, a: u32, b: u32) -> u32 {
        let (a, b) = (self.find(a), self.find(b));
        self.0[a.max(b) as usize] = a.min(b);
        a.min(b)
    }
}
