//! Whether a history of concurrent operations can be put into one order that a model allows: a search in the manner of
//! Wing and Gong, with the memory of dead ends that Lowe added.
//!
//! An operation takes effect at one moment between its call and its answer. So whatever was answered before another was
//! called comes before it, and all else may be in any order. The search tries those orders step by step, and remembers
//! every pair of (what has been placed, state of the model) that it has been at, because two ways that lead to the same
//! pair have the same future.
//!
//! An operation without an answer may take effect at any moment after its call, or never. The search may place it
//! anywhere behind its call and may leave it out.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

/// What a system may do.
pub(crate) trait Model {
    /// The state of the system.
    type State: Clone + Eq + Hash + Debug;
    /// One call with what was answered.
    type Action;

    /// The states that this action may lead to from here, with this answer. None: it cannot have happened here.
    fn step(&self, state: &Self::State, action: &Self::Action) -> Vec<Self::State>;
}

/// One operation of a history. Times are numbers that grow: of two events the earlier one has the smaller number.
#[derive(Debug, Clone)]
pub(crate) struct Operation<A> {
    pub(crate) called: u64,
    /// None: nobody knows whether and when it took effect.
    pub(crate) answered: Option<u64>,
    pub(crate) action: A,
}

/// What the search came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict<S> {
    /// There is such an order.
    Linearizable {
        /// How many pairs were looked at.
        visited: usize,
    },
    /// There is none.
    NotLinearizable(Stuck<S>),
    /// The search was given up after so many pairs.
    Undecided { visited: usize },
}

/// As far as an order goes that places the most operations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stuck<S> {
    /// Operations by index, in that order.
    pub(crate) placed: Vec<usize>,
    /// The state after them.
    pub(crate) state: S,
    /// Answered operations, any of which would have to come next, and none can.
    pub(crate) blocked: Vec<usize>,
}

/// Looks for an order. `operations` may come in any order; indexes in the verdict are those of the slice.
pub(crate) fn check<M: Model>(
    model: &M,
    initial: M::State,
    operations: &[Operation<M::Action>],
    visited_max: usize,
) -> Verdict<M::State> {
    Search::new(model, operations).run(initial, visited_max)
}

struct Search<'a, M: Model> {
    model: &'a M,
    operations: &'a [Operation<M::Action>],
    /// Answered operations in the order of their calls.
    answered: Vec<usize>,
    /// The others, likewise.
    unanswered: Vec<usize>,
    is_placed: Vec<bool>,
    /// How many of `answered` are placed without a gap from the first.
    placed_up_to: usize,
    answered_placed: usize,
}

/// A point of the search: where it stands and what it has yet to try from there.
struct Node<S> {
    state: S,
    choices: Vec<(usize, S)>,
}

/// What two ways must have in common to have the same future: how far the answered operations are placed without a gap,
/// which are placed beyond that or have no answer, and the state.
type Seen<S> = (usize, Vec<usize>, S);

impl<'a, M: Model> Search<'a, M> {
    fn new(model: &'a M, operations: &'a [Operation<M::Action>]) -> Self {
        let mut order: Vec<usize> = (0..operations.len()).collect();
        order.sort_by_key(|index| operations[*index].called);
        let (answered, unanswered) = order
            .into_iter()
            .partition(|index| operations[*index].answered.is_some());
        Self {
            model,
            operations,
            answered,
            unanswered,
            is_placed: vec![false; operations.len()],
            placed_up_to: 0,
            answered_placed: 0,
        }
    }

    fn run(mut self, initial: M::State, visited_max: usize) -> Verdict<M::State> {
        let mut seen: HashSet<Seen<M::State>> = HashSet::new();
        let mut placed: Vec<usize> = Vec::new();
        let mut best: Option<Stuck<M::State>> = None;
        let mut best_count = 0;
        let choices = self.choices(&initial);
        let mut path = vec![Node {
            state: initial,
            choices,
        }];
        while let Some(node) = path.last_mut() {
            if self.answered_placed == self.answered.len() {
                return Verdict::Linearizable { visited: seen.len() };
            }
            let Some((index, state)) = node.choices.pop() else {
                if best.is_none() || best_count < self.answered_placed {
                    best_count = self.answered_placed;
                    best = Some(Stuck {
                        placed: placed.clone(),
                        state: node.state.clone(),
                        blocked: self.next_answered(),
                    });
                }
                path.pop();
                if let Some(last) = placed.pop() {
                    self.take_back(last);
                }
                continue;
            };
            self.place(index);
            if !seen.insert((self.placed_up_to, self.placed_beyond(), state.clone())) {
                self.take_back(index);
                continue;
            }
            if visited_max < seen.len() {
                return Verdict::Undecided { visited: seen.len() };
            }
            placed.push(index);
            let choices = self.choices(&state);
            path.push(Node { state, choices });
        }
        Verdict::NotLinearizable(best.expect("the search ends here only after it was stuck"))
    }

    /// What may come next from this state; the last one is tried first.
    fn choices(&self, state: &M::State) -> Vec<(usize, M::State)> {
        let mut next = self.next_answered();
        // Whoever was answered first has probably happened first.
        next.sort_by_key(|index| self.operations[*index].answered);
        let mut found = Vec::new();
        for index in &next {
            let mut states = self.model.step(state, &self.operations[*index].action);
            if let [only] = &states[..]
                && only == state
            {
                // It changes nothing and can happen now. In every order that works with it later on, it may as well be
                // moved to here, so nothing else need be tried.
                return vec![(*index, states.remove(0))];
            }
            found.extend(states.into_iter().map(|state| (*index, state)));
        }
        // Until which call everything that is unanswered has begun: no answered operation may be overtaken.
        let limit = next.iter().filter_map(|index| self.operations[*index].answered).min();
        for index in self.unanswered.iter().filter(|index| !self.is_placed[**index]) {
            if limit.is_some_and(|limit| limit < self.operations[*index].called) {
                break;
            }
            let states = self.model.step(state, &self.operations[*index].action);
            found.extend(
                states
                    .into_iter()
                    .filter(|new| new != state)
                    .map(|state| (*index, state)),
            );
        }
        found.reverse();
        found
    }

    /// The answered operations of which one must come next: called before any that is not placed was answered.
    fn next_answered(&self) -> Vec<usize> {
        let mut next = Vec::new();
        let mut first_answer = u64::MAX;
        for index in &self.answered[self.placed_up_to..] {
            let operation = &self.operations[*index];
            if first_answer < operation.called {
                break;
            }
            if !self.is_placed[*index] {
                first_answer = first_answer.min(operation.answered.unwrap_or(u64::MAX));
                next.push(*index);
            }
        }
        next.retain(|index| self.operations[*index].called < first_answer);
        next
    }

    fn placed_beyond(&self) -> Vec<usize> {
        let mut beyond = Vec::new();
        let mut missing = self.answered_placed - self.placed_up_to;
        for index in &self.answered[self.placed_up_to..] {
            if missing == 0 {
                break;
            }
            if self.is_placed[*index] {
                beyond.push(*index);
                missing -= 1;
            }
        }
        beyond.extend(self.unanswered.iter().filter(|index| self.is_placed[**index]));
        beyond
    }

    fn place(&mut self, index: usize) {
        self.is_placed[index] = true;
        if self.operations[index].answered.is_some() {
            self.answered_placed += 1;
        }
        while self.placed_up_to < self.answered.len() && self.is_placed[self.answered[self.placed_up_to]] {
            self.placed_up_to += 1;
        }
    }

    fn take_back(&mut self, index: usize) {
        self.is_placed[index] = false;
        if self.operations[index].answered.is_some() {
            self.answered_placed -= 1;
            let called = self.operations[index].called;
            while 0 < self.placed_up_to && called <= self.operations[self.answered[self.placed_up_to - 1]].called {
                self.placed_up_to -= 1;
            }
        }
    }
}
