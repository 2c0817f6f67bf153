/* look.h - when and how deep to look next. control.c's; pure. */
#ifndef PSI_CONTROL_LOOK_H
#define PSI_CONTROL_LOOK_H

#include "control/control.h"

/* Fills sleep_us, look and arm of a decision that is otherwise complete. */
void psi_look_plan(psi_control *control, const psi_reading *reading, const psi_demand *demand, psi_decision *decision);

#endif
