-- A row for each run, and one for each fault in it. `verdict` has everything that the checker said.
CREATE TABLE runs (
    began timestamptz NOT NULL,
    name text NOT NULL,
    seed bigint NOT NULL,
    minutes double precision NOT NULL,
    version text NOT NULL,
    passed boolean NOT NULL,
    failures text[] NOT NULL,
    reconnects_tried bigint NOT NULL,
    reconnects_percent double precision NOT NULL,
    messages_expected bigint NOT NULL,
    loss_percent double precision NOT NULL,
    p50_ms double precision NOT NULL,
    p99_ms double precision NOT NULL,
    verdict jsonb NOT NULL,
    -- Of TimescaleDB's hypertables, time has to be part of a key.
    PRIMARY KEY (began, name)
);

CREATE TABLE faults (
    began timestamptz NOT NULL,
    run text NOT NULL,
    at_seconds double precision NOT NULL,
    lasts_seconds double precision NOT NULL,
    fault text NOT NULL,
    server integer
);

CREATE INDEX faults_by_run ON faults (began, run);
