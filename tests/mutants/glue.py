"""Mutations of src/, each with the test that must fail: scripts/mutants_glue.py applies them (`make mutants-glue`).

cargo-mutants can't test these, because they run only inside a server; it covers crates/clip (`make mutants`). Here each mutation names
one test, so a run does not repeat the whole suite. tests/release/test_mutants.py checks that each mutation still applies.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    old: str
    new: str
    test: str


MUTATIONS = [
    # ------------------------------------------------------------ the queue and its worker
    Mutation(
        "the delay after a failure does not grow",
        "src/watch/queue.rs",
        "first.saturating_mul(1 << attempts.clamp(1, 21).saturating_sub(1)).min(LONGEST_REST)",
        "first.saturating_mul(i64::from(attempts.min(1))).min(LONGEST_REST)",
        "tests/watch/test_timing.py::test_each_failure_doubles_the_delay",
    ),
    Mutation(
        "a commit wakes nobody",
        "src/watch/wakeup.rs",
        "    set_latch(process);\n}\n\n/// The slot of a database",
        "    let _ = process;\n}\n\n/// The slot of a database",
        "tests/watch/test_timing.py::test_a_commit_wakes_the_worker",
    ),
    Mutation(
        "more rows than a batch are claimed",
        "src/watch/queue.rs",
        "ORDER BY {order} LIMIT $2 FOR UPDATE SKIP LOCKED",
        "ORDER BY {order} LIMIT $2 + 1000 FOR UPDATE SKIP LOCKED",
        "tests/watch/test_timing.py::test_no_more_rows_than_a_batch_are_claimed",
    ),
    Mutation(
        "the worker reads with row-level security",
        "src/pg/owners_table.rs",
        '        // A row that a policy hides would be treated as deleted; with the setting off, it raises an error.\n        set(c"row_security", c"off");',
        '        // A row that a policy hides would be treated as deleted; with the setting off, it raises an error.\n        set(c"row_security", c"on");',
        "tests/watch/test_policies.py::test_the_worker_says_that_a_policy_is_in_its_way",
    ),
    Mutation(
        "an owner's own regrouping reads with row-level security",
        "src/pg/owners_table.rs",
        'set(c"row_security", c"off");',
        'if !is_own {\n            set(c"row_security", c"off");\n        }',
        "tests/watch/test_policies.py::test_nor_are_hidden_rows_left_out_of_the_clusters",
    ),
    Mutation(
        "owners get no shares of the worker's time",
        "src/watch/worker/shares.rs",
        "        self.owners.charge(watch.owner, time);\n",
        "",
        "tests/watch/test_fair_worker.py::test_time_is_shared_by_owner_not_by_table",
    ),
    Mutation(
        "a batch of slow rows is not cut short",
        "src/watch/worker/round.rs",
        "const SLICE: Duration = Duration::from_millis(500);",
        "const SLICE: Duration = Duration::from_millis(500_000);",
        "tests/watch/test_fair_worker.py::test_a_table_whose_trigger_is_slow_holds_others_up_by_one_row",
    ),
    Mutation(
        "a trigger that swallows the cancel has the worker for ever",
        "src/pg/hard_limit.rs",
        "            enable_timeout_after(timer, guc::worker_timeout().saturating_add(GRACE));",
        "            let _ = GRACE;",
        "tests/watch/test_fair_worker.py::test_a_trigger_that_swallows_the_cancel_ends_the_process_and_others_go_on",
    ),
    Mutation(
        "a broken image is tried again and again",
        "src/watch/work.rs",
        '["22", "0A", "54"].iter()',
        '["99"].iter()',
        "tests/watch/test_worker.py::test_poison_rows_back_off_and_are_listed",
    ),
    Mutation(
        "rows that came after clip_backfill are waited for",
        "src/watch/queue.rs",
        'format!("id > {after} AND id <= {last}")',
        'format!("id > {after} AND (true OR id <= {last})")',
        "tests/watch/test_backfill.py::test_what_comes_later_is_not_waited_for",
    ),
    Mutation(
        "clip_retry takes every SQLSTATE",
        "src/watch/backfill.rs",
        "pg_catalog.left(sqlstate, pg_catalog.length($3)) = $3)",
        "pg_catalog.length($3) > 0)",
        "tests/watch/test_backfill.py::test_failures_are_tried_again_by_kind",
    ),
    Mutation(
        "a source that a collation takes for equal is not embedded again",
        "src/watch/rows.rs",
        '("text", " COLLATE pg_catalog.\\"C\\"")',
        '("text", "")',
        "tests/watch/test_backfill.py::test_sources_are_compared_by_their_bytes",
    ),
    Mutation(
        "a row that could not be updated counts as embedded",
        "src/watch/rows.rs",
        "        if done != 1 {",
        "        if done > 1 {",
        "tests/watch/test_former.py::test_a_trigger_that_keeps_rows_from_being_updated_is_named",
    ),
    # ------------------------------------------------------------ the triggers
    Mutation(
        "a changed row stays in its old group",
        "src/watch/trigger/after.rs",
        "        confirm(plan, new);\n        part(plan, old)?;\n",
        "        confirm(plan, new);\n",
        "tests/watch/test_watch.py::test_rows_follow_their_source",
    ),
    Mutation(
        "a row that is deleted stays in its group",
        "src/watch/trigger/after.rs",
        "        && !moves::is_moving(&member)\n    {\n        part(plan, old)?;\n    }",
        "        && !moves::is_moving(&member)\n    {\n        drop(member);\n    }",
        "tests/watch/test_watch.py::test_rows_follow_their_source",
    ),
    Mutation(
        "a row that moves to another partition leaves its group",
        "src/watch/trigger/moves.rs",
        "        MOVING.with(|moving| moving.push(member.clone()));\n",
        "",
        "tests/watch/test_watch.py::test_a_partitioned_table",
    ),
    Mutation(
        "TRUNCATE leaves the groups",
        "src/watch/trigger/after.rs",
        "        statements::clear_latest(collection)?;\n",
        "        let _ = (statements::clear_latest, collection);\n",
        "tests/watch/test_watch.py::test_rows_follow_their_source",
    ),
    Mutation(
        "what was joined for a row that is not stored stays",
        "src/cluster/pending.rs",
        "        leave(cluster, Vector(vector), Some(&collection), None)?;\n",
        "        let _ = (leave, cluster, Vector(vector), collection);\n",
        "tests/watch/test_watch.py::test_on_conflict",
    ),
    Mutation(
        "an embedding that is written by hand changes no group",
        "src/watch/trigger/before.rs",
        "    if same(old.datum(plan.embedding), new.datum(plan.embedding)) || !same_value(old, new, cluster) {\n        return Ok(None);",
        "    if same(old.datum(plan.embedding), new.datum(plan.embedding)) || same_value(old, new, cluster) {\n        return Ok(None);",
        "tests/watch/test_watch_edges.py::test_an_embedding_written_by_hand_changes_the_group",
    ),
    Mutation(
        "a vector of another model may be written",
        "src/watch/trigger/before.rs",
        "Some(model) if loaded::base_name(&model) != loaded::base_name(&plan.watch.model) => Err",
        "Some(model) if loaded::base_name(&model).is_empty() => Err",
        "tests/watch/test_watch.py::test_one_model_a_column",
    ),
    # ------------------------------------------------------------ groups
    Mutation(
        "one candidate is compared",
        "src/cluster/search.rs",
        "const MAX_COMPARED: usize = 640;",
        "const MAX_COMPARED: usize = 1;",
        "tests/cluster/test_search.py",
    ),
    Mutation(
        "one candidate is always compared",
        "src/cluster/search.rs",
        "const MIN_COMPARED: usize = 64;",
        "const MIN_COMPARED: usize = 1;",
        "tests/cluster/test_search.py",
    ),
    Mutation(
        "a search ends however near the last ones were",
        "src/cluster/search.rs",
        "const SPREAD: f64 = 0.05;",
        "const SPREAD: f64 = 0.0;",
        "tests/cluster/test_search.py",
    ),
    Mutation(
        "a search ends however likely the next ones are",
        "src/cluster/search.rs",
        "const DEVIATIONS: f64 = 3.3;",
        "const DEVIATIONS: f64 = 0.0;",
        "tests/cluster/test_search.py",
    ),
    Mutation(
        "the two tables are read at two moments",
        "src/cluster/search.rs",
        "self.store.scan(Snapshot::Registered(&now), Index::ChangeCluster",
        "self.store.scan(Snapshot::Dirty, Index::ChangeCluster",
        "tests/cluster/test_concurrency.py::test_a_group_that_comes_and_goes_is_read_whole",
    ),
    Mutation(
        "members that others are adding are not seen",
        "src/cluster/search.rs",
        "        self.0[place].1.add(&vector, None, row.bigint(sum::SIZE));\n",
        "        let _ = place;\n",
        "tests/cluster/test_concurrency.py::test_what_others_are_adding_counts",
    ),
    Mutation(
        "two sessions found the same cluster at once",
        "src/cluster/assign.rs",
        "                let _lock = store.lock_briefly(&collection.name, true);\n                // The previous holder",
        "                // The previous holder",
        "tests/cluster/test_concurrency.py::test_a_storm_of_sessions_keeps_one_exact_cluster_a_subject",
    ),
    Mutation(
        "whoever leaves need not be a member",
        "src/cluster/assign.rs",
        "            if !cluster.sum.may_hold(&member) {",
        "            if !cluster.sum.may_hold(&member) && cluster.sum.size < 0 {",
        "tests/cluster/test_concurrency.py::test_members_leave_and_the_last_takes_the_cluster_along",
    ),
    Mutation(
        "the last member leaves rows behind",
        "src/cluster/assign.rs",
        "        if left == 0 {",
        "        if left < 0 {",
        "tests/cluster/test_concurrency.py::test_members_leave_and_the_last_takes_the_cluster_along",
    ),
    Mutation(
        "changes are not added up",
        "src/cluster/assign.rs",
        "        if cluster.wants_folding() {",
        "        if cluster.wants_folding() && cluster.id < 0 {",
        "tests/cluster/test_concurrency.py::test_an_open_transaction_blocks_nobody",
    ),
    Mutation(
        "codes are never made",
        "src/cluster/assign.rs",
        "        if founded && search.recent.get() >= RECENT {",
        "        if founded && search.recent.get() >= RECENT * 1000 {",
        "tests/cluster/test_search.py::test_codes_that_the_extension_writes_are_the_second_implementations",
    ),
    # ------------------------------------------------------------ rights
    Mutation(
        "every role may assign",
        "src/cluster/access.rs",
        "    pub fn check_assign(&self, role: pg_sys::Oid) -> SqlResult<()> {\n",
        "    pub fn check_assign(&self, role: pg_sys::Oid) -> SqlResult<()> {\n        if !self.name.is_empty() {\n            return Ok(());\n        }\n",
        "tests/cluster/test_owners.py::test_a_stranger_sees_and_changes_nothing",
    ),
    Mutation(
        "one privilege is as good as another",
        "src/cluster/access.rs",
        "                granted == privilege.name() && (*grantee",
        "                !granted.is_empty() && (*grantee",
        "tests/cluster/test_owners.py::test_each_privilege_is_granted_and_revoked_by_itself",
    ),
    Mutation(
        "an owner's code reaches the caller's cursors",
        "src/pg/cursors.rs",
        "                    (*portal).status = pg_sys::PortalStatus::PORTAL_ACTIVE;\n",
        "",
        "tests/server/test_rights.py::test_a_caller_s_cursors_are_out_of_reach",
    ),
    Mutation(
        "another table that takes a table's name is planned",
        "src/pg/analyzed.rs",
        "    renamed().report(PgLogLevel::ERROR);\n",
        "",
        "tests/server/test_rights.py::test_another_table_that_takes_the_name_is_not_planned",
    ),
    Mutation(
        "an owner's code sets the caller's constraints",
        "src/pg/restricted.rs",
        '        pg_sys::NodeTag::T_ConstraintsSetStmt => "SET CONSTRAINTS",\n',
        "",
        "tests/server/test_rights.py::test_what_would_outlast_the_call_is_refused",
    ),
    Mutation(
        "a row on which a worker has ended comes first",
        "src/watch/queue.rs",
        '"(q.attempts = 0 OR q.sqlstate',
        '"(true OR q.attempts = 0 OR q.sqlstate',
        "tests/server/test_worker_ends.py::test_they_come_last",
    ),
    Mutation(
        "a condition that leaks sees every group",
        "sql/bootstrap.sql",
        "CREATE VIEW clip_search.collection WITH (security_barrier = true) AS",
        "CREATE VIEW clip_search.collection AS",
        "tests/server/test_rights.py::test_views_are_security_barriers",
    ),
    # ------------------------------------------------------------ embedding
    Mutation(
        "terms of another model are added up",
        "src/embed/query.rs",
        "            origin::check_origin(&vector.0, whose)?;\n",
        "            let _ = (whose, origin::check_origin as usize);\n",
        "tests/embed/test_query.py::test_terms_of_another_model_are_refused",
    ),
    Mutation(
        "labels come in the order that they were given in",
        "src/embed/classify.rs",
        "    rows.sort_by(|a, b| b.1.total_cmp(&a.1));\n",
        "    rows.sort_by(|_, _| std::cmp::Ordering::Equal);\n",
        "tests/embed/test_classify.py::test_softmax_of_scaled_cosines",
    ),
]
