-- Which process a host is, on which machine: another host there that finds it
-- dead need not wait for its leases to end. '' is not known.

-- migrate:up
ALTER TABLE event_hosts ADD COLUMN process text NOT NULL DEFAULT '';

-- migrate:down
ALTER TABLE event_hosts DROP COLUMN process;
