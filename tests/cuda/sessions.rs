//! Whole sessions through the CUDA backend, with the kernels run on the processor, against the oracle bit for bit.

use std::sync::Arc;

use proptest::prelude::*;
use sae::backend::Screen;
use sae::backend::cuda::CudaModel;
use sae::sae::Sae;
use sae::session::{Session, SessionOptions};

use crate::common::cases::Case;
use crate::common::definition::{self, options};
use crate::stand_in::StandInDriver;

/// With scores bounded first and without, each in orders of its own.
fn ways(sae: &Arc<Sae>, case: &Case) -> Vec<(String, Session)> {
    let way = |screen| {
        let model = CudaModel::on(Arc::clone(sae), StandInDriver::new(case.seed | 1)).unwrap();
        let options = SessionOptions { screen, ..options(case) };
        (format!("screen: {screen:?}"), Session::new(model, options).unwrap())
    };
    vec![way(Screen::Always), way(Screen::Never)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn encode_and_decode_are_the_definition(case in Case::any(), width in 0usize..40) {
        definition::encode_and_decode(&case, width, &ways)?;
    }

    #[test]
    fn dense_and_selected_are_the_definition(case in Case::any().prop_map(Case::whole_if_competing)) {
        definition::dense_and_selected(&case, &ways)?;
    }

    #[test]
    fn steering_is_the_definition(
        case in Case::any().prop_map(Case::whole_if_competing), in_place in any::<bool>(), known_width in 0usize..130,
    ) {
        definition::steering(&case, in_place, known_width, &ways)?;
    }

    #[test]
    fn shards_merge_to_the_whole(case in Case::any().prop_map(Case::mergeable), width in 0usize..40, cuts in 1usize..4) {
        definition::merging(&case, width, cuts, &ways)?;
    }

    #[test]
    fn element_types_strides_and_splits_make_no_difference(
        case in Case::any().prop_map(Case::whole_if_competing), kind in 0u8..3, gap in 0usize..5, layers_first in any::<bool>(),
    ) {
        definition::views(&case, kind, (gap, layers_first), &ways);
    }
}
