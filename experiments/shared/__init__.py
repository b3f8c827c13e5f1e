"""What several experiments compute alike.

students    two-layer ReLU students of a teacher, many scales at a time
flows       gradient flow by the Runge-Kutta method, compiled as one loop
training    trainings that a killed run goes on with
vgg         VGG-11, its images and its schedule
"""
