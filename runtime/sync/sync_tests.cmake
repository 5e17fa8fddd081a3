wukong_test(sync_test
  SOURCES average_test.cc damaged_payload_test.cc leaf_schedule_random_test.cc leaf_schedule_test.cc learning_rate_test.cc node_engine_test.cc outer_optimizer_test.cc outgoing_payload_test.cc
          parent_node_random_test.cc parent_node_test.cc presets_test.cc public_copy_test.cc replica_test.cc retry_test.cc stream_tuner_test.cc wait_account_test.cc
  DEPS wukong_sync wukong_sync_presets)
