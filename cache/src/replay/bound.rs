//! A bound, not a policy: what the default policy would do if it knew when each file is wanted next.
//!
//! It is Belady's rule with costs: the rate of use is one over the time to the next use. It is no proof of an optimum (files differ in
//! size and in cost, and then the optimum is a knapsack over all of time), but nothing that has to guess comes near it.

use crate::plan::Policy;
use crate::plan::value::Value;
use crate::replay::Setup;
use crate::replay::trace::Trace;

/// The all-knowing policy, if that is asked for.
pub(super) fn policy(trace: &Trace, setup: &Setup) -> Option<Box<dyn Policy>> {
    if !setup.foresight {
        return None;
    }
    let start = trace.requests.first().map_or(0, |request| request.at_ms);
    let uses = trace.requests.iter().flat_map(|request| {
        let at = request.at_ms - start;
        request.files.iter().map(move |file| (trace.files[*file as usize].blob, at))
    });
    Some(Box::new(Value::all_knowing(setup.links.costs(), uses)))
}
