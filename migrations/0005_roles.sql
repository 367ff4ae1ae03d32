-- Three roles to grant to the users that connect: moontide_producer may only
-- publish, moontide_host runs the host and its handlers, moontide_auditor only
-- reads. None of them may change an event or an audit row; the triggers hold
-- for the tables' owner as well.
--
-- Roles belong to the cluster and may serve another database already. Without
-- the right to create them the schema works for its owner, and says so.

-- migrate:up
DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['moontide_producer', 'moontide_host', 'moontide_auditor'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO moontide_producer, moontide_host, moontide_auditor',
                   current_schema());

    GRANT INSERT ON domain_events TO moontide_producer, moontide_host;
    GRANT USAGE ON SEQUENCE domain_events_seq TO moontide_producer, moontide_host;
    GRANT EXECUTE ON FUNCTION
        publish_event(text, text, text, jsonb, jsonb, int, bigint, timestamptz, text),
        publish_events(jsonb) TO moontide_producer, moontide_host;
    GRANT EXECUTE ON FUNCTION moontide_create_partitions(int) TO moontide_host;

    GRANT SELECT, INSERT, UPDATE, DELETE ON
        event_handler_positions, event_inbox, event_deliveries, event_dead_letters,
        event_flags, event_handler_versions, event_analytics_hourly,
        event_analytics_daily, consents, do_not_call, compliance_checks, notifications
        TO moontide_host;
    GRANT SELECT, INSERT ON event_audit_log TO moontide_host;
    GRANT SELECT ON domain_events, moontide_meta, moontide_migrations, aggregate_versions,
        event_delivery_status TO moontide_host;
    GRANT USAGE ON SEQUENCE event_audit_log_id_seq, event_dead_letters_id_seq TO moontide_host;

    GRANT SELECT ON
        domain_events, aggregate_versions, event_handler_positions, event_inbox,
        event_deliveries, event_dead_letters, event_flags, event_handler_versions,
        event_delivery_status, event_audit_log, event_analytics_hourly,
        event_analytics_daily, consents, do_not_call, compliance_checks, notifications,
        moontide_meta, moontide_migrations TO moontide_auditor;
EXCEPTION WHEN insufficient_privilege THEN
    RAISE WARNING 'roles moontide_producer, moontide_host and moontide_auditor not set up: %', SQLERRM;
END
$$;

-- migrate:down
DO $$
DECLARE
    role text;
    kind text;
BEGIN
    FOREACH role IN ARRAY ARRAY['moontide_producer', 'moontide_host', 'moontide_auditor'] LOOP
        CONTINUE WHEN NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role);
        BEGIN
            FOREACH kind IN ARRAY ARRAY['TABLES', 'SEQUENCES', 'ROUTINES'] LOOP
                EXECUTE format('REVOKE ALL ON ALL %s IN SCHEMA %I FROM %I',
                               kind, current_schema(), role);
            END LOOP;
            EXECUTE format('REVOKE ALL ON SCHEMA %I FROM %I', current_schema(), role);
            EXECUTE format('DROP ROLE %I', role);
        EXCEPTION
            WHEN dependent_objects_still_exist THEN
                RAISE NOTICE 'role % stays: another schema or database uses it', role;
            WHEN insufficient_privilege THEN
                RAISE WARNING 'role % stays: %', role, SQLERRM;
        END;
    END LOOP;
END
$$;
