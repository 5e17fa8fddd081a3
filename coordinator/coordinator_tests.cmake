wukong_test(coordinator_test
  SOURCES coordinator_core_test.cc coordinator_faults_test.cc coordinator_loss_test.cc coordinator_recovery_test.cc root_faults_test.cc shard_ledger_test.cc
  DEPS wukong_coordinator)
