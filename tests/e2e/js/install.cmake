file(MAKE_DIRECTORY ${TARGET})
file(GLOB files ${SOURCE}/*.mjs)
file(COPY ${files} ${SOURCE}/package.json DESTINATION ${TARGET})
execute_process(COMMAND ${NPM} install --no-audit --no-fund --no-package-lock --prefer-offline
                WORKING_DIRECTORY ${TARGET} RESULT_VARIABLE result)
if(NOT result EQUAL 0 OR NOT EXISTS ${TARGET}/node_modules/e2b/package.json)
  message(FATAL_ERROR "npm install of the official e2b package failed (${result})")
endif()
