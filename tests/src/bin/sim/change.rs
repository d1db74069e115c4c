//! What can be changed in a seed's plan from the command line: to make a run smaller, and to replay it so.

use clap::Args;
use floe_tests::sim::plan::{Bug, FaultKind, Plan};
use std::collections::BTreeSet;

/// Changes to what the seed drew; see `--help`.
#[derive(Args, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// Client operations per run, instead of what the plan says.
    #[arg(long)]
    pub ops: Option<u64>,
    /// Clients, instead of what the plan says.
    #[arg(long)]
    pub clients: Option<u32>,
    /// Keys, instead of what the plan says.
    #[arg(long)]
    pub keys: Option<u32>,
    /// Shards, instead of what the plan says.
    #[arg(long)]
    pub shards: Option<u32>,
    /// Nodes, instead of what the plan says.
    #[arg(long)]
    pub nodes: Option<usize>,
    /// Only these of the faults that are drawn strike, by their number from 0: `3,7..9`; `none` for none.
    #[arg(long, value_parser = parse_faults)]
    pub only_faults: Option<FaultNumbers>,
    /// Plant this bug (feature `planted`).
    #[arg(long, value_parser = parse_bug)]
    pub bug: Option<Bug>,
}

/// Numbers of faults. (A plain set would be taken for a list of values by the parser.)
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultNumbers(pub BTreeSet<u64>);

impl Change {
    /// The plan of a seed with these changes.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan = Plan::draw(seed);
        plan.bug = self.bug;
        plan.load.operations = self.ops.unwrap_or(plan.load.operations);
        plan.load.clients = self.clients.unwrap_or(plan.load.clients);
        plan.load.keys = self.keys.unwrap_or(plan.load.keys);
        plan.shards = self.shards.unwrap_or(plan.shards);
        if let Some(nodes) = self.nodes {
            plan.cores.resize(nodes, plan.cores[0]);
            plan.replication = plan.replication.min(nodes);
        }
        plan.faults_only = self.only_faults.as_ref().map(|faults| faults.0.clone());
        plan
    }

    /// As it would be given on the command line.
    pub fn flags(&self) -> Vec<String> {
        let Self { ops, clients, keys, shards, nodes, only_faults, bug } = self;
        let pairs = [
            ("--ops", ops.map(|value| value.to_string())),
            ("--clients", clients.map(|value| value.to_string())),
            ("--keys", keys.map(|value| value.to_string())),
            ("--shards", shards.map(|value| value.to_string())),
            ("--nodes", nodes.map(|value| value.to_string())),
            ("--only-faults", only_faults.as_ref().map(show_faults)),
            ("--bug", bug.map(|bug| format!("{bug:?}"))),
        ];
        pairs.into_iter().filter_map(|(flag, value)| Some([flag.to_owned(), value?])).flatten().collect()
    }
}

fn show_faults(faults: &FaultNumbers) -> String {
    if faults.0.is_empty() {
        return "none".into();
    }
    faults.0.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

fn parse_faults(text: &str) -> Result<FaultNumbers, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let mut faults = BTreeSet::new();
    for part in text.split(',').filter(|_| text != "none") {
        match part.split_once("..") {
            Some((from, to)) => faults.extend(number(from)?..number(to)?),
            None => {
                faults.insert(number(part)?);
            }
        }
    }
    Ok(FaultNumbers(faults))
}

fn parse_bug(text: &str) -> Result<Bug, String> {
    if !cfg!(feature = "planted") {
        return Err("build with `--features planted` to plant bugs".into());
    }
    let bug = Bug::ALL.into_iter().find(|bug| format!("{bug:?}") == text);
    bug.ok_or_else(|| format!("none of {:?}", Bug::ALL))
}

/// Kinds of faults that a plan draws from, for people.
pub fn kinds(plan: &Plan) -> Vec<FaultKind> {
    plan.faults.iter().map(|(kind, _)| *kind).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        change: Change,
    }

    #[test]
    fn flags_mean_the_change_that_they_were_made_from() {
        let faults = |numbers: &[u64]| Some(FaultNumbers(numbers.iter().copied().collect()));
        for change in [
            Change::default(),
            Change { ops: Some(7), clients: Some(1), only_faults: faults(&[]), ..Change::default() },
            Change {
                keys: Some(2),
                shards: Some(1),
                nodes: Some(3),
                only_faults: faults(&[0, 5]),
                ..Change::default()
            },
        ] {
            let line = Line::parse_from(["sim".to_owned()].into_iter().chain(change.flags()));
            assert_eq!(line.change, change);
        }
        assert_eq!(parse_faults("3,7..9"), Ok(faults(&[3, 7, 8]).unwrap_or_default()));
        assert!(parse_faults("3,x").is_err());
    }
}
