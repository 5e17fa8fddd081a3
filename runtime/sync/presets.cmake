wukong_library(wukong_sync_presets
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/presets.cc ${CMAKE_CURRENT_LIST_DIR}/stable_gain.cc
    ${CMAKE_CURRENT_LIST_DIR}/strategy_check.cc
  DEPS wukong_job_proto wukong_base)
