//! Documents whose tokens are coming in, several by turns.

use super::block::{Block, Neighbourhood};
use crate::error::Result;

/// Consecutive tokens of a document. Windows do not reach beyond them.
struct Stretch {
    document: i64,
    /// The position of the first token that is not settled, and of the next that may come.
    settled: u64,
    next: u64,
    /// The last that is settled, the one that is full and waits for what follows it, and that which is being filled.
    blocks: [Block; 3],
    /// When its last token came.
    used: u64,
}

/// The stretches that are open.
pub(super) struct Documents {
    block: usize,
    width: usize,
    most: usize,
    open: Vec<Stretch>,
    /// Which of them got the last token.
    last: usize,
    clock: u64,
    /// Blocks to be used again.
    spare: Vec<[Block; 3]>,
    /// Stretches that were ever begun.
    pub(super) begun: u64,
}

impl Documents {
    /// Of blocks of so many tokens, which have up to `width` features each; `most` can be open.
    pub(super) fn new(block: usize, width: usize, most: usize) -> Self {
        Self { block, width, most, open: Vec::new(), last: 0, clock: 0, spare: Vec::new(), begun: 0 }
    }

    /// Adds a token and its features; of a token without a position, the next of its document.
    pub(super) fn push(
        &mut self,
        (document, position, token): (i64, Option<u64>, i32),
        features: &[(u32, f32)],
        mut settle: impl FnMut(Neighbourhood<'_>),
    ) -> Result<()> {
        self.clock += 1;
        let found = match self.open.get(self.last) {
            Some(last) if last.document == document => Some(self.last),
            _ => self.open.iter().position(|stretch| stretch.document == document),
        };
        let found = match found {
            Some(i) if position.is_some_and(|position| position != self.open[i].next) => {
                self.end(i, &mut settle);
                None
            }
            found => found,
        };
        let i = match found {
            Some(i) => i,
            None => self.begin(document, position.unwrap_or(0), &mut settle)?,
        };
        self.last = i;
        let stretch = &mut self.open[i];
        let filling = &mut stretch.blocks[2];
        filling.push(token);
        features.iter().for_each(|&(feature, value)| filling.add(feature, value));
        stretch.next += 1;
        stretch.used = self.clock;
        if filling.tokens.len() == self.block {
            filling.sort();
            stretch.settle_one(&mut settle);
        }
        Ok(())
    }

    /// Ends all documents.
    pub(super) fn finish(&mut self, mut settle: impl FnMut(Neighbourhood<'_>)) {
        while !self.open.is_empty() {
            self.end(0, &mut settle);
        }
    }

    fn begin(&mut self, document: i64, position: u64, settle: &mut impl FnMut(Neighbourhood<'_>)) -> Result<usize> {
        if self.open.len() == self.most {
            let oldest = (0..self.most).min_by_key(|&i| self.open[i].used);
            self.end(oldest.unwrap_or(0), settle);
        }
        let blocks = match self.spare.pop() {
            Some(blocks) => blocks,
            None => {
                let block = || Block::new(self.block, self.width);
                [block()?, block()?, block()?]
            }
        };
        self.open.push(Stretch { document, settled: position, next: position, blocks, used: self.clock });
        self.begun += 1;
        Ok(self.open.len() - 1)
    }

    fn end(&mut self, i: usize, settle: &mut impl FnMut(Neighbourhood<'_>)) {
        let mut stretch = self.open.swap_remove(i);
        stretch.blocks[2].sort();
        // What waits, and then what is being filled.
        stretch.settle_one(settle);
        stretch.settle_one(settle);
        stretch.blocks.iter_mut().for_each(Block::clear);
        self.spare.push(stretch.blocks);
    }
}

impl Stretch {
    /// Settles the block that waits, if there is one; the block that was filled waits then.
    fn settle_one(&mut self, settle: &mut impl FnMut(Neighbourhood<'_>)) {
        let waiting = self.blocks[1].tokens.len() as u64;
        if waiting > 0 {
            settle(Neighbourhood { document: self.document, position: self.settled, blocks: self.blocks.each_ref() });
            self.settled += waiting;
        }
        self.blocks.rotate_left(1);
        self.blocks[2].clear();
    }
}
